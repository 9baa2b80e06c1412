"""The planted mistakes of ``mutants.py`` still fit the code, so that whoever runs it learns something."""

import pytest
from mutants import MUTANTS, ROOT, planted


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_mistake_fits(mutant):
    text = (ROOT / "dpo_core" / mutant.file).read_text(encoding="utf-8")
    compile(changed := planted(text, mutant), mutant.file, "exec")
    assert changed != text
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in mutant.tests)
