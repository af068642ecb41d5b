"""Videos -> frames with time stamps -> clips.

reader           what a video reader is
pyav             by PyAV
decord           by decord
head             what a file's first bytes say
integrity        up to where a video can be trusted
sampling         which frames become which clip
clips            a video sample -> clips or a reject
index            what packets say of the frames; frames from a key frame on
local_video      a video as a file that decoders can seek in
pieces           a long video in pieces that are decoded apart
"""
