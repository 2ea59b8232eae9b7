"""What `import open3d` meets on a machine without its libraries. On PYTHONPATH, this folder hides a working one."""

raise OSError("libusb-1.0.so.0: cannot open shared object file: No such file or directory")
