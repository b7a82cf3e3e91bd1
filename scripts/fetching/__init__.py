"""Files from elsewhere: fetched whole, verified and recorded, or not at all."""
