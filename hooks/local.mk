# Commands for the instant of a backup.
bin_PROGRAMS += nbdmirror-guest-agent
nbdmirror_guest_agent_SOURCES = hooks/guest-agent.c
nbdmirror_guest_agent_LDADD = libbase.la $(JANSSON_LIBS)
