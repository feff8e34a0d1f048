"""What a trained model does inside: functions of values that taps read."""
