"""COCO mask AP: prediction of a data set, metrics, and evaluation shared by several processes."""
