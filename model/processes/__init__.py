"""Processes of their own for what strangers send: started, fenced and ended."""
