//! Tests against the running kernel, most of them as root on file systems made for the purpose.
