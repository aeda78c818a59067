"""The package against the header and a tiny model. Run from the repository's root: see README.md."""

import re
import subprocess
import sys
import tempfile
import unittest
from ctypes import sizeof
from pathlib import Path

import runtime_engine
from runtime_engine import Engine, Error, _abi

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/golden/tiny/chat"
HEADER = re.sub(r"/\*.*?\*/", "", (ROOT / "include/runtime.h").read_text(), flags=re.S)


class Abi(unittest.TestCase):
    def test_structs_are_the_headers(self):
        for name, struct in _abi.STRUCTS.items():
            body = re.search(r"typedef struct \{([^}]*)\} " + name + ";", HEADER).group(1)
            fields = re.findall(r"(\w+)(?:\[\d+\])?;", body)
            self.assertEqual([field[0] for field in struct._fields_], fields, name)
        if sizeof(_abi.P) == 8:
            sizes = {name: sizeof(struct) for name, struct in _abi.STRUCTS.items()}
            self.assertEqual((sizes["runtime_event"], sizes["runtime_generate_options"]), (168, 104))

    def test_functions_are_the_headers(self):
        for name, arguments in _abi.CALLS.items():
            declared = re.search(rf"runtime_status {name}\(([^;]*)\);", HEADER).group(1)
            self.assertEqual(len(declared.split(",")), len(arguments) + 1, name)


class Model(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = Engine(backend="cpu")
        cls.model = cls.engine.load(TINY)

    def session(self, text="Hello"):
        session = self.model.session()
        session.append_text(text)
        return session

    def test_streams_and_goes_on(self):
        session = self.session()
        pieces = list(session.generate(max_tokens=8))
        self.assertGreater(len(pieces), 1)
        fork = session.fork()
        self.assertEqual(session.generate(max_tokens=4).text(), fork.generate(max_tokens=4).text())
        restored = self.model.load_state(session.save_state())
        self.assertEqual(restored.tokens(), session.tokens())
        session.rewind(2)
        self.assertEqual(len(session), 2)

    def test_stepped_is_the_same(self):
        expected = self.session().generate(max_tokens=8).text()
        with Engine(backend="cpu", stepped=True) as engine:
            session = engine.load(TINY).session()
            session.append_text("Hello")
            self.assertEqual(session.generate(max_tokens=8).text(), expected)

    def test_cancel_and_errors(self):
        request = self.session().generate(max_tokens=100, ignore_eos=1)
        next(request)
        request.cancel()
        with self.assertRaises(Error) as caught:
            request.text()
        self.assertEqual(caught.exception.name, "RUNTIME_ERROR_CANCELLED")
        request.cancel()
        with self.assertRaises(Error) as caught:
            self.engine.load("/no/such/model.gguf")
        self.assertIn("/no/such/model.gguf", str(caught.exception))
        with self.assertRaises(ValueError):
            Engine(backend="abacus")

    def test_messages_and_a_schema(self):
        session = self.model.session()
        session.append_messages([{"role": "user", "content": "Hi"}])
        schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
        self.assertIn("1", session.generate(json_schema=schema, max_tokens=64).text())

    def test_tokens_and_numbers(self):
        ids = self.model.tokenize("naïve 日本", add_special=False)
        self.assertEqual(self.model.detokenize(ids), "naïve 日本")
        self.assertEqual(len(self.model.embed(ids)), self.model.info()["hidden"])
        self.assertEqual(len(self.model.score(ids)), len(ids) - 1)

    def test_training_and_an_adapter(self):
        job = self.model.training(max_steps=5, rank=4, batch_size=1, grad_accum=1, warmup_steps=-1, learning_rate=1e-2)
        job.add_example({"prompt": "Hello", "completion": " world"})
        job.start()
        losses = [event.loss for event in job.steps()]
        self.assertEqual(len(losses), 5)
        self.assertLess(losses[-1], losses[0])
        adapter = job.snapshot()
        session = self.session()
        session.set_adapters((adapter, 0.5))
        self.assertTrue(session.generate(max_tokens=4, ignore_eos=1).text() is not None)
        with tempfile.TemporaryDirectory() as folder:
            adapter.save(folder)
            self.assertIsNotNone(self.model.adapter(folder))

    def test_the_example(self):
        example = ROOT / "bindings/python/examples/learn.py"
        out = subprocess.run([sys.executable, example, TINY], capture_output=True, text=True, check=True)
        self.assertIn("after:", out.stdout)
        self.assertEqual(out.stderr, "")


if __name__ == "__main__":
    print("library", runtime_engine.version())
    unittest.main(verbosity=2)
