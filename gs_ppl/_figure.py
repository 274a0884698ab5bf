"""Pictures; imported where one is drawn, since matplotlib is an extra."""

from io import BytesIO

from matplotlib import figure


class Figure(figure.Figure):
    """matplotlib's, which a notebook shows though pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
