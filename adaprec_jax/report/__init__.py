"""What people read: numbers in, text out. It knows no run and no directory."""
