"""What a Llama is: its numbers, its tensors, the order of its rotary rows, its releases.

In: plain values of params.json and shapes. Out: a configuration, the layout of every tensor, and the
release that it was recognised as. No input or output, and no numpy.
"""
