from .command import app

app(prog_name="python -m demo")
