"""Calibration data: from text, data sets or chats to windows of tokens."""
