"""The command line: options in, words and exit statuses out.

It holds no decision of its own: a command parses, calls the library and reports.
In: arguments. Out: lines on stdout and stderr, and an exit status.
"""
