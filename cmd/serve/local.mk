nbdmirror_SOURCES += \
	cmd/serve/nbdkit-answers.c \
	cmd/serve/nbdkit-answers.h \
	cmd/serve/nbdkit-args.c \
	cmd/serve/nbdkit-args.h \
	cmd/serve/nbdkit-run.c \
	cmd/serve/nbdkit-run.h \
	cmd/serve/paths.c \
	cmd/serve/paths.h \
	cmd/serve/serve.c \
	cmd/serve/tidy.c \
	cmd/serve/tidy.h
