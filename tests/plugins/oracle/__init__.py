"""An lmms-eval plugin with a model that knows every answer: what it scores is what the data can give."""
