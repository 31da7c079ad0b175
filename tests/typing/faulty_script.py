"""Script with an error in each line that ends in "error", which type checkers must report; it is not run."""

from solo_infer import SOLO, Result

model = SOLO.from_pretrained("tiny")
result: Result = model("street.jpg")
result.save("a.jpg", min_scor=0.5)  # error
result.save("a.jpg", boxes="yes")  # error
result.plot(alpha="half")  # error
model(["street.jpg"]).save("a.jpg")  # error
model(5)  # error
