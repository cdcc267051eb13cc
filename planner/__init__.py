"""Pure optimization on tensors: search action sequences whose predicted latents come close to a goal.

Knows a `WorldModel` protocol and nothing of networks, files or services.
"""
