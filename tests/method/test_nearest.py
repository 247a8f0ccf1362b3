from eggs_ptp.method.nearest import nearest


def test_the_nearest_known_name_or_an_empty_string():
    assert nearest("wnda", ["magnitude", "wanda"]) == ", did you mean 'wanda'?"
    assert nearest("xyzzy", ["magnitude", "wanda"]) == ""
    assert nearest("wanda", []) == ""
