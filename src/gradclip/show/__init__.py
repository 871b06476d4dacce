"""Style, words, summaries and files: shared by report, export, live and the command line."""
