"""The engine: one asyncio process for each project, which wires everything and knows no screen.

`engine` carries the core's commands out, `board` is what clients are shown, `requests` what they may ask.
"""
