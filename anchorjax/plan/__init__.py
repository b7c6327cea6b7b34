"""The planner: does a run fit the hardware, how long does a step take, and what does it cost, known on a laptop.

planner.py    the plan of a run: all of the below, together
trial.py      one configuration, compiled: does it fit
timed.py      a compiled configuration with the rows and the modelled step of its run
remedies.py   what to change if it does not
search.py     candidates for given hardware, ranked by estimate
comparison.py the best candidates, compiled
show.py       a plan as text
command.py    the command that starts the run on its hardware
progress.py   what the planner does, with the seconds
hardware.py   memory, peaks and links of one device of each target
step.py       the training step, compiled for the hardware
buffers.py    the memory that a compiler assigned to the program's values, and when they are live
memory.py     what that memory is for, or would be if the compiler had room for it
estimate.py   the memory of a step by formula
program.py    collectives of a compiled program, and how often each runs
groups.py     along which axes of the mesh a collective exchanges
exchanges.py  what devices exchange in a step, counted and by formula
documents.py  live tiles, visible pairs and balance of packed rows, counted from the lengths of documents
links.py      how long an exchange along an axis takes
tiles.py      what a tile of attention costs
schedule.py   XLA's own estimate of a TPU program's cycles
work.py       what a step computes and copies, part by part
time.py       modelled time and cost of a step
picture.py    a plan as a picture
"""
