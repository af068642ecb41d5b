"""Where things lie: buckets, disks and the web.

options          a job's storage options, for every file system that is opened
store            the output: create-only writes, listings
unfinished       uploads whose processes were killed
failures         which errors of a store are for good
remedies         what to do about them
listing          files below a folder, in one order everywhere
source_file      a source's file, opened to be read forward
read_ahead       its next block is fetched meanwhile
background       a call on a thread of its own; deadlines
"""
