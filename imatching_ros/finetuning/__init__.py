"""Learning from recordings instead of live: windows are collected once, learned from many times, and judged on what was held back."""
