"""What only an extra installs is missed by name, with what to do."""

from __future__ import annotations

import pytest

from model.extras import MissingExtra, missing, require


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("numpy", "service", "counting")
    with pytest.raises(MissingExtra) as caught:
        require("no_such_package", "service", "the flight recorder")
    assert str(caught.value) == (
        "the flight recorder needs no_such_package; "
        "install the extra 'service' (pip install -c constraints.txt -e '.[service]')"
    )


def test_only_what_is_missing_is_named() -> None:
    assert missing(("numpy", "torch"), "service", "openpi") == ""
    assert missing(("numpy", "no_such", "nor_this"), "service", "openpi").startswith(
        "openpi needs no_such and nor_this; "
    )
