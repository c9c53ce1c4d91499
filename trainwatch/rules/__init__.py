"""The rules: one file each, the folder is the family. Nothing is listed anywhere; what stands here is found."""
