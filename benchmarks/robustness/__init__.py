"""Kills, interruptions, mutated inputs and damage: nothing is lost, nothing hangs."""
