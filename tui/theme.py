"""Our two themes. All of Textual's own are there too; `T` chooses."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="devloop-dark",
    primary="#7aa2f7",
    secondary="#5f7d95",
    accent="#e0a458",
    success="#7fc98b",
    warning="#e6c35c",
    error="#f07178",
    foreground="#d7dae0",
    background="#14171c",
    surface="#14171c",
    panel="#20252d",
    dark=True,
    variables={
        "text-success": "#8fd69b",
        "text-warning": "#e6c35c",
        "text-error": "#ff8b8b",
        "text-accent": "#e8b878",
        "text-primary": "#8fb4ff",
        "text-muted": "#8b93a1",
        "footer-background": "#14171c",
        "block-cursor-background": "#2b3a55",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-blurred-background": "#20252d",
        "scrollbar": "#3a424f",
        "scrollbar-background": "#14171c",
    },
)
LIGHT = Theme(
    name="devloop-light",
    primary="#2455c3",
    secondary="#6d8296",
    accent="#b26a00",
    success="#3f9a55",
    warning="#b58900",
    error="#c8323c",
    foreground="#23272e",
    background="#fbfbf9",
    surface="#fbfbf9",
    panel="#ecece6",
    dark=False,
    variables={
        "text-success": "#1e6e33",
        "text-warning": "#7a5a00",
        "text-error": "#b01e28",
        "text-accent": "#8a5200",
        "text-primary": "#1d489f",
        "text-muted": "#5f6670",
        "footer-background": "#fbfbf9",
        "block-cursor-background": "#cfdcf7",
        "block-cursor-foreground": "#101318",
        "block-cursor-blurred-background": "#ecece6",
        "scrollbar": "#c2c4c0",
        "scrollbar-background": "#fbfbf9",
    },
)
THEMES = (DARK, LIGHT)
