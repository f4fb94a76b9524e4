"""The checks of the command `doctor`: does this project compute correctly on a machine, and how fast is it there?"""
