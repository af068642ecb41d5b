"""Pictures and pages about a dataset.

page             the HTML report
rows             the rows that it shows
charts           SVG charts
deciding         what decided how many tokens an image has, in words
correlations     what goes with the number of tokens
picture          one image: original, kept patches, reconstruction
rebuilt          tokens -> pixels again, by the tokenizer that made them
heat             what DTF ranked by, as a heat map
shown_frames     the frames that stand for a clip
animation        clips as animated WebP
"""
