"""Trainings with one planted fault each, and healthy trainings."""
