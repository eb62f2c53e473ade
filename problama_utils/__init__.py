import sys

# A console that lacks a sign (Windows' cp1252 has no check mark) shows ? in its place instead of ending the program.
for _stream in (sys.stdout, sys.stderr):
    if getattr(_stream, "errors", "") == "strict" and hasattr(_stream, "reconfigure"):
        _stream.reconfigure(errors="replace")
