"""Whatever is read from outside, fed with nonsense: ``targets`` says what, ``__main__`` how."""
