"""What gets tokens: flat areas, sky, photos, texture and noise, by the limit to the texture."""
