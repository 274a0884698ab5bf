"""What both sides say and count: one idea a module, and no framework in any of them."""
