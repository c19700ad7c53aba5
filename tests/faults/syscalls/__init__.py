"""System calls that strace shows, refuses, or makes the last one; and the order of those that save."""
