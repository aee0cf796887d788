"""Tests for backends, and fakes for tests of what uses them. Needs pytest and pytest-asyncio.

Whoever writes a backend runs the suite that this project runs over its own:

    # conftest.py
    pytest_plugins = ["asyncflow.testing.plugin"]

    # test_my_backend.py
    from asyncflow.testing.conformance import BackendConformance
    from my_package import MyBackend

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend(workers=2)

Passing it is what "supports this backend" means. Each test is one promise; where a backend declares that it lacks a
capability, the test checks what it must do instead. `BackendConformance` says what `make_backend` should give and what
else a subclass may set. The plugin's fixtures (`make_engine`, `no_leaks`, `free_loop`) serve other tests as well.

`asyncflow.testing.fakes.FakeBackend` is for the other side: tests of graphs and programs in which the test decides
when each task begins, how it ends, and whether its worker is lost.
"""
