"""Rebuilding a running group of workers in place: members leave, die and join, the rest goes on.

`roster` decides, `rendezvous` is where members meet, `link` is a member's end of it,
`process_group` breaks and builds torch's group, `_ray_hooks` ties it to Ray Train's controller.
What a training function holds is `rayburst.train.membership.Membership`.
"""
