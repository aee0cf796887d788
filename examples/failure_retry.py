"""What happens when tasks fail: retries, failed dependencies, programs with an exit code.

What to look at: `retries=` repeats a task that fails. A task that fails for good fails what depends on it, and the
error there names the root cause and not only the last step; what does not depend on it goes on. A program's failure
carries its exit code and the end of its stderr.
"""

from __future__ import annotations

import asyncio

from asyncflow import DependencyFailureError, ExecutableError, TaskTimeoutError, WorkflowEngine


async def main() -> None:
    async with WorkflowEngine.create() as flow:
        attempts = 0

        @flow.function_task(retries=3, retry_delay=lambda failures: 0.05 * 2**failures)
        def flaky() -> str:
            nonlocal attempts  # threads share memory with this script
            attempts += 1
            if attempts < 3:
                raise ConnectionError("the server is restarting")
            return "an answer"

        print(f"retries: {await flaky()} at attempt {attempts}")

        @flow.function_task
        def load(path: str) -> list[float]:
            with open(path) as file:
                return [float(line) for line in file]

        @flow.function_task
        def mean(values: list[float]) -> float:
            return sum(values) / len(values)

        @flow.function_task
        def report(value: float) -> str:
            return f"the mean is {value}"

        try:
            await report(mean(load("/no/such/file")))
        except DependencyFailureError as error:
            print(f"dependencies: {error.failed_dependencies[0]} failed, because of a", end=" ")
            print(type(error.root_cause).__name__)
            print(f"the whole story:\n{error}")

        @flow.executable_task
        def program() -> list[str]:
            return ["ls", "/no/such/folder"]

        try:
            await program()
        except ExecutableError as error:
            print(f"executable: {error.cmd} exited with {error.returncode} and said: {error.stderr.strip()}")

        @flow.function_task(timeout=0.2)
        async def slow() -> None:
            await asyncio.sleep(60)

        try:
            await slow()
        except TaskTimeoutError as error:
            print(f"timeout: {error}")


if __name__ == "__main__":
    asyncio.run(main())
