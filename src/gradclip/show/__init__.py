"""Shared by report, export, live and the command line."""
