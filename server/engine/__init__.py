"""An engine as the front sees it: its messages, the process that is supervised, and the admission in front of it."""
