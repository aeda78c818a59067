"""What the tables of client calls share: errors that must come, and a run that one failure does not end."""

import sys
import traceback

# A random model may end its answer at any token.
ON = {"ignore_eos": True}


def refused(call, kind, param=None, says=""):
    """`call` must fail with `kind`, about the field `param`, with `says` in the message."""
    try:
        call()
    except kind as error:
        assert param is None or error.param == param, f"param {error.param!r}, not {param!r}: {error}"
        assert says in str(error), error
        return error
    raise AssertionError(f"not refused with {kind.__name__}")


def run(tests):
    failed = 0
    for name in [name for name in dir(tests) if name.startswith("test_")]:
        try:
            getattr(tests, name)()
            print("ok", name)
        except Exception as error:  # one failure must not hide the others
            traceback.print_exc(file=sys.stdout)
            print("FAILED", name, repr(error))
            failed += 1
    sys.exit(failed > 0)
