"""Training and evaluation of world models. Episodes, tasks and progress come in as arguments."""
