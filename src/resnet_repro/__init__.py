"""Reproduce, number by number, what three papers print about CIFAR-10."""
