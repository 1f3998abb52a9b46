"""Break a running system on purpose, and check from outside that nothing was lost.

`plan` says what will be broken, from a seed; `driver` runs the load and breaks it;
`tasks`, `site` and `producer` are the system under test; `checker` judges, knowing
nothing of Taskline but its promises.
"""
