nbdmirror_SOURCES += \
	cmd/complete/complete.c \
	cmd/complete/complete.h \
	cmd/complete/older.c \
	cmd/complete/tell.c
