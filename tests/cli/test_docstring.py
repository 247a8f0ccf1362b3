from eggs_ptp.cli.docstring import take_apart


def test_takes_a_docstring_apart():
    text = take_apart(
        """a_ij + b.

        More about it,
        on two lines.

        Args:
            alpha: how much; more
                of it: louder.
            beta: the other.

        Returns:
            Something.

        Source: a paper,
            eq. 1.
        Differs: not much.
        """
    )
    assert text.formula == "a_ij + b.\n\nMore about it,\non two lines."
    assert text.arguments == {"alpha": "how much; more of it: louder.", "beta": "the other."}
    assert text.source == "a paper, eq. 1."
    assert text.differs == "not much."


def test_what_is_not_there_is_empty():
    text = take_apart("One line.")
    assert (text.formula, text.arguments, text.source, text.differs) == ("One line.", {}, "", "")
