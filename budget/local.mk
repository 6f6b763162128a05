# A bandwidth limit that the jobs of a host share.
noinst_LTLIBRARIES += libbudget.la
libbudget_la_SOURCES = \
	budget/budget.c \
	budget/budget.h \
	budget/store.c \
	budget/store.h \
	budget/list.c \
	budget/share.c \
	budget/share.h
