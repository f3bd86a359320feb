"""Write the files anew."""

from tests.golden.routes.cases import FOLDER, GOLDEN, texts

for name, text in texts():
    if name.endswith(GOLDEN):
        (FOLDER / name).write_text(text)
