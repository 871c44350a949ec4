"""The laboratory: recordings, simulation, training, evaluation, experiments. The robot imports nothing from here."""
