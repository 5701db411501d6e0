"""What runs on the device: each operation's maths, its NumPy reference and its kernels. Imports nothing from minidl."""

BELONGS_TO = "minidl"  # a Hugging Face package shares the import name; `import minidl` looks for this mark
