"""The explorer: a network's maps in a browser, live from a server on this machine or as static files.

state.py holds what has been computed, jobs.py the thread that computes, live.py what only the server can answer,
server.py the application, export.py the same as files; page/ is what the browser runs.
"""
